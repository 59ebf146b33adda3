"""Modelfiles: a chat template in Go's language, and the tokens that end an answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from toolkit.publish.modelfile import (
    _conversations,
    _render,
    find_frame,
    stop_texts,
    write_modelfile,
)

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GO_COMMAND = shutil.which("go") or ""
GO = """
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var input struct {
		Template string
		Messages []Message
	}
	json.NewDecoder(os.Stdin).Decode(&input)
	made := template.Must(template.New("x").Parse(input.Template))
	if err := made.Execute(os.Stdout, input); err != nil {
		panic(err)
	}
}
"""


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    changed = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, **{"eos_token": "<|end|>"}
    )
    changed.chat_template = template
    return changed


def test_chatml(tiny_tokenizer: PreTrainedTokenizerFast):
    frame = find_frame(with_template(tiny_tokenizer, CHATML))
    assert frame is not None
    assert frame.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert frame.answer == "<|im_start|>assistant\n"
    assert frame.start_without_system == "<|im_start|>system\nYou help.<|im_end|>\n"
    go = frame.as_go()
    assert go.endswith("{{ end }}{{ end }}<|im_start|>assistant\n")
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in go


def test_a_template_that_counts_is_not_guessed(tiny_tokenizer: PreTrainedTokenizerFast):
    counted = CHATML.replace("m['role'] +", "m['role'] + (loop.index | string) +")
    assert find_frame(with_template(tiny_tokenizer, counted)) is None


def test_a_template_without_the_system(tiny_tokenizer: PreTrainedTokenizerFast):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    frame = find_frame(with_template(tiny_tokenizer, refusing + CHATML))
    assert frame is not None
    assert set(frame.around) == {"assistant", "user"}


def test_the_file(tmp_path: Path, make_model: Callable[..., Path]):
    model = make_model(tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    said = write_modelfile(model, tmp_path / "tiny-Q8_0.gguf")
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith('FROM ./tiny-Q8_0.gguf\nTEMPLATE """{{ range .Messages }}')
    assert 'PARAMETER stop "<|end|>"' in text
    assert len(stop_texts(model)) == 2
    assert "60 conversations" in said


@pytest.mark.skipif(not GO_COMMAND, reason="no Go here")
def test_go_renders_the_same(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    tokenizer = with_template(tiny_tokenizer, CHATML)
    frame = find_frame(tokenizer)
    assert frame is not None
    (tmp_path / "main.go").write_text(GO)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GOFLAGS": "-mod=mod"}
    subprocess.run(
        [GO_COMMAND, "build", "-o", "render", "main.go"], cwd=tmp_path, check=True, env=environment
    )
    for messages in _conversations():
        given = json.dumps({"Template": frame.as_go(), "Messages": messages})
        rendered = subprocess.run(
            [str(tmp_path / "render")], input=given, capture_output=True, text=True, check=True
        )
        assert rendered.stdout == _render(tokenizer, messages)
