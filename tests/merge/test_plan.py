"""Plans over made-up names and shapes: which tensor, from where, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from toolkit.checkpoint.models import Shapes, Source
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.plan import MergePlan, plan_merge
from toolkit.merge.task import TensorTask


def llama(
    layers: int = 4, *, head: bool = False, stack: str = "model.layers", **more: tuple[int, ...]
) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8, 4)}
    for layer in range(layers):
        shapes[f"{stack}.{layer}.mlp.weight"] = (4, 4)
        shapes[f"{stack}.{layer}.self_attn.weight"] = (4, 4)
    shapes["model.norm.weight"] = (4,)
    if head:
        shapes["lm_head.weight"] = (8, 4)
    return shapes | {name.replace("__", "."): shape for name, shape in more.items()}


def plan(
    data: dict[str, Any],
    models: Mapping[str, Shapes] | None = None,
    configs: Mapping[str, dict[str, Any]] | None = None,
) -> MergePlan:
    found = models or {"a": llama(), "b": llama()}
    config = parse_merge_config(data, where="test")
    return plan_merge(config, lambda name: found[name], lambda name: (configs or {}).get(name, {}))


def by_name(made: MergePlan) -> dict[str, TensorTask]:
    return {task.name: task for task in made.tasks}


def weights(made: MergePlan) -> dict[str, tuple[float, ...]]:
    return {task.name: task.parameters["weight"] for task in made.tasks}


def linear(a: Any, b: Any, **more: Any) -> dict[str, Any]:
    models = [
        {"model": "a", "parameters": {"weight": a}},
        {"model": "b", "parameters": {"weight": b}},
    ]
    return {"merge_method": "linear", "models": models, **more}


def piece(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    found = {"model": model, "layer_range": [start, stop]}
    return {**found, "parameters": parameters} if parameters else found


def test_a_gradient_over_depth_and_what_stands_outside_the_layers():
    # layers 0..3 are at t = 0, 1/3, 2/3, 1; [0, 1, 0] has its top at 1/2
    found = weights(plan(linear([0.0, 1.0, 0.0], 1.0)))
    mlp = [found[f"model.layers.{layer}.mlp.weight"][0] for layer in range(4)]
    assert mlp == pytest.approx([0.0, 2 / 3, 2 / 3, 0.0])
    assert found["model.embed_tokens.weight"] == found["model.norm.weight"] == (0.0, 1.0)
    one = plan(linear([0.0, 0.8], 1.0), {"a": llama(1), "b": llama(1)})
    assert weights(one)["model.layers.0.mlp.weight"] == (0.8, 1.0)  # mergekit's t of a lone layer


def test_tensors_come_in_order():
    names = [
        task.name for task in plan(linear(1.0, 1.0), {m: llama(2, head=True) for m in "ab"}).tasks
    ]
    assert names == [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
        "model.layers.0.self_attn.weight",
        "model.layers.1.mlp.weight",
        "model.layers.1.self_attn.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]


def by_part(words: str, value: float) -> dict[str, Any]:
    return {"filter": words, "value": value}


def test_precedence():
    # source over slice over module over global; a scope without a match is passed over
    sources = [piece("a", 0, 4, weight={"filter": "mlp", "value": 0.1}), piece("b", 0, 4)]
    data = {
        "merge_method": "linear",
        "modules": {
            "default": {
                "slices": [
                    {"sources": sources, "parameters": {"weight": {"filter": "mlp", "value": 0.2}}}
                ],
                "parameters": {"weight": [by_part("mlp", 0.9), by_part("self_attn", 0.3)]},
            }
        },
        "parameters": {"weight": 0.4},
    }
    found = weights(plan(data))
    assert found["model.layers.1.mlp.weight"] == (0.1, 0.2)
    assert found["model.layers.1.self_attn.weight"] == (0.3, 0.3)
    assert found["model.norm.weight"] == (0.4, 0.4)


def test_slices_renumber_and_have_gradients_of_their_own():
    data = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [piece("a", 0, 2, scale=[0.0, 1.0])]},
            {"sources": [piece("b", 1, 4, scale=[0.0, 1.0])]},
        ],
    }
    made = plan(data)
    tasks = by_name(made)
    assert tasks["model.layers.3.mlp.weight"].sources == (Source("b", "model.layers.2.mlp.weight"),)
    scales = [tasks[f"model.layers.{i}.mlp.weight"].parameters["scale"][0] for i in range(5)]
    assert scales == [0.0, 1.0, 0.0, 0.5, 1.0]
    assert tasks["model.embed_tokens.weight"].sources[0].model == "a"
    assert tasks["model.norm.weight"].sources[0].model == "b"
    assert made.num_layers == 5
    assert made.stacks["model.layers"] == (("a", 0), ("a", 1), ("b", 1), ("b", 2), ("b", 3))


def test_a_filter_sees_each_model_s_own_name():
    filtered = {"filter": "layers.2.", "value": 5.0}
    data = {
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "slices": [{"sources": [piece("a", 0, 2), piece("b", 2, 4, weight=filtered)]}],
    }
    assert weights(plan(data))["model.layers.0.mlp.weight"] == (1.0, 5.0)


def test_base_models():
    tuned = [{"model": "b", "parameters": {"weight": 1.0}}]
    made = plan({"merge_method": "task_arithmetic", "base_model": "a", "models": tuned})
    task = by_name(made)["model.norm.weight"]
    assert (task.base, task.sources) == (
        Source("a", "model.norm.weight"),
        (Source("b", "model.norm.weight"),),
    )
    with pytest.raises(ConfigError, match="base_model: is needed by task_arithmetic"):
        plan({"merge_method": "task_arithmetic", "models": tuned})
    # As in mergekit, a base model is one more of the models to a method that knows no base.
    with pytest.raises(
        ConfigError, match=r"weight: is needed for model\.embed_tokens\.weight of a"
    ):
        plan({"merge_method": "linear", "base_model": "a", "models": tuned})
    sources = [piece("b", 0, 2, weight=1.0), piece("c", 2, 4, weight=1.0)]
    sliced = {"merge_method": "ties", "base_model": "a", "slices": [{"sources": sources}]}
    with pytest.raises(ConfigError, match="add it to the sources"):
        plan(sliced, {name: llama() for name in "abc"})


def test_a_tied_and_an_untied_model():
    models = {"a": llama(), "b": llama(head=True)}
    made = plan(linear(1.0, 1.0), models, {"b": {"tie_word_embeddings": False}})
    task = by_name(made)["lm_head.weight"]
    assert [source.tensor for source in task.sources] == [
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]
    assert made.has_own_head
    both = {name: {"tie_word_embeddings": True} for name in "ab"}
    made = plan(linear(1.0, 1.0), models, both)
    assert "lm_head.weight" not in by_name(made)
    assert not made.has_own_head
    with pytest.raises(MergeError, match=r"lm_head\.weight: b has it and a has not"):
        plan(linear(1.0, 1.0), models, {"a": {"tie_word_embeddings": False}})


def test_a_head_that_the_first_model_has_not_is_the_last_slice_s():
    slices = [
        {"sources": [piece("a", i, i + 1), piece("b", i, i + 1)], "parameters": {"weight": w}}
        for i, w in enumerate((0.25, 0.75))
    ]
    models = {"a": llama(), "b": llama(head=True)}
    made = plan({"merge_method": "linear", "slices": slices}, models)
    assert "lm_head.weight" not in by_name(made)  # tied as far as is known
    made = plan(
        {"merge_method": "linear", "slices": slices}, models, {"b": {"tie_word_embeddings": False}}
    )
    assert weights(made)["lm_head.weight"] == (0.75, 0.75)
    assert weights(made)["model.embed_tokens.weight"] == (0.25, 0.25)


def test_the_head_that_a_filter_names_is_the_head():
    filtered = [{"filter": "lm_head", "value": 0.25}, {"value": 1.0}]
    models = {"a": llama(), "b": llama(head=True)}
    made = plan(linear(filtered, 1.0), models, {"b": {"tie_word_embeddings": False}})
    assert weights(made)["lm_head.weight"] == (0.25, 1.0)


def test_buffers_are_copied_or_left_out():
    rotary = {"model.layers.0.rotary_emb.inv_freq": (2,)}
    made = plan(linear(1.0, 1.0), {"a": llama() | rotary, "b": llama()})
    assert not any("inv_freq" in task.name for task in made.tasks)
    made = plan(linear(1.0, 1.0), {"a": llama() | rotary, "b": llama() | rotary})
    assert [task.name for task in made.tasks if task.is_copied] == list(rotary)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (llama(3), "model.layers: models differ in their number of layers"),
        (llama() | {"model.norm.weight": (5,)}, r"model.norm.weight: a is \[4\] but b is \[5\]"),
        (llama() | {"model.norm.bias": (4,)}, "model.norm.bias: b has it and a has not"),
        (llama(stack="h"), "models differ in their number of layers"),
    ],
)
def test_models_that_do_not_fit_are_named(other: Shapes, words: str):
    with pytest.raises(MergeError, match=words):
        plan(linear(1.0, 1.0), {"a": llama(), "b": other})


def test_a_slice_of_another_layer_of_a_model_with_fewer():
    # The tuned model's layer 0 meets the base's layer 1, which the tuned model does not have.
    data = {
        "merge_method": "ties", "base_model": "a",
        "slices": [
            {"sources": [piece("b", 0, 1, weight=1.0, density=0.5), piece("a", 1, 2)]},
        ],
    }  # fmt: skip
    made = by_name(plan(data, {"a": llama(2), "b": llama(1)}))
    task = made["model.layers.0.mlp.weight"]
    assert task.base == Source("a", "model.layers.1.mlp.weight")
    assert task.sources == (Source("b", "model.layers.0.mlp.weight"),)


VISION = {
    "vision_tower.patch.weight": (3,),
    "vision_tower.layers.0.w": (3,),
    "vision_tower.layers.1.w": (3,),
    "multi_modal_projector.0.weight": (3,),
    "multi_modal_projector.2.weight": (3,),
}


def module(weight: float, **more: Any) -> dict[str, Any]:
    models = [{"model": "a", "parameters": {"weight": weight}}, {"model": "b"}]
    return {"models": models, "parameters": {"weight": 1.0}, **more}


def test_modules():
    models = {name: VISION | llama() for name in "ab"}
    data = {
        "merge_method": "linear",
        "modules": {
            "vision_tower": module(0.1),
            "multi_modal_projector": module(0.2),
            "text_decoder": module(0.3),
        },
    }
    found = weights(plan(data, models))
    assert len(found) == len(models["a"])
    for name, weight in found.items():
        expected = 0.1 if "vision" in name else 0.2 if "projector" in name else 0.3
        assert weight == (expected, 1.0)


def test_modules_cut_one_stack_and_leave_the_other_whole():
    models = {name: VISION | llama() for name in "ab"}
    cut = [{"sources": [piece("a", 0, 1)]}, {"sources": [piece("b", 3, 4)]}]
    rest = {"models": [{"model": "a"}]}
    data = {"merge_method": "passthrough", "modules": {"default": rest, "model": {"slices": cut}}}
    made = plan(data, models)
    assert {stack: len(layers) for stack, layers in made.stacks.items()} == {
        "vision_tower.layers": 2,
        "model.layers": 2,
    }
    assert (
        by_name(made)["model.layers.1.mlp.weight"].sources[0].tensor == "model.layers.3.mlp.weight"
    )


def test_what_no_module_has_is_named():
    models = {name: VISION | llama() for name in "ab"}
    data = {
        "merge_method": "linear",
        "modules": {"vision_tower": module(1.0), "model": module(1.0)},
    }
    with pytest.raises(MergeError, match=r"multi_modal_projector\.0\.weight belongs to none of"):
        plan(data, models)


def test_slices_of_a_model_with_several_stacks_need_modules():
    models = {name: VISION | llama() for name in "ab"}
    data = {"merge_method": "passthrough", "slices": [{"sources": [piece("a", 0, 1)]}]}
    with pytest.raises(MergeError, match="has several stacks of layers"):
        plan(data, models)
    text_only = {"a": {"num_hidden_layers": 4}}
    assert plan(data, models, text_only).stacks["model.layers"] == (("a", 0),)


def test_layers_beyond_the_last_are_refused():
    data = {"merge_method": "passthrough", "slices": [{"sources": [piece("a", 2, 5)]}]}
    with pytest.raises(MergeError, match=re.escape("[2, 5] goes beyond a, which has 4 layers")):
        plan(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (linear(1.0, 1.0, parameters={"normalise": 1}), "parameters.normalise: linear has no such"),
        (
            {"merge_method": "linear", "modules": {"x": module(1.0, parameters={"wieght": 1})}},
            "modules.x.parameters.wieght: .*did you mean weight",
        ),
        (linear("much", 1.0), "weight: must be of type float"),
        (linear(1.0, 1.0) | {"merge_method": "linaer"}, "did you mean linear"),
    ],
)
def test_faults_of_parameters(data: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        plan(data)


def test_what_has_no_effect_in_mergekit_has_none_here():
    sources = [piece("a", 0, 4, weight=1.0), piece("b", 0, 4, weight=1.0)]
    data = {"merge_method": "linear", "slices": [{"sources": sources}]}
    more = {"merge_method": "linear", "slices": [{"sources": sources, "residual_weight": 0.5}]}
    assert plan(data) == plan(more)
