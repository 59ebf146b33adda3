"""Memory by component, worked by hand, and what fits where."""

from __future__ import annotations

import pytest

from tests.helpers.shapes import LLAMA_3_70B, MIXTRAL, ROUND, SMOL
from toolkit.checkpoint.config import ShapeSection
from toolkit.plan.activations import activation_bytes, fused_activations, is_fused
from toolkit.plan.devices import DEVICES, Device, Fleet
from toolkit.plan.fit import fits, memory_on, misfit, ways_to_train
from toolkit.plan.memory import training_memory
from toolkit.train.config import TrainSection


def section(**values: object) -> TrainSection:
    settled = {"micro_batch_size": 2, "global_batch_size": 2, "precision": "bf16"}
    return TrainSection.model_validate({**settled, **values})


def test_components_by_hand():
    # 4,050 parameters; matrices without embedding and head 2,050; 2 blocks of 8 tokens
    found = training_memory(
        ROUND, section(gradient_checkpointing="none", attn_implementation="sdpa"), 8
    )
    assert found.weights == 4 * 4050 + 2 * 2050
    assert found.optimizer == 8 * 4050
    # a layer and token: 26 x 10 + 8 x 10 + 8 x 20 + mask 2 x 8 + 4 x 2 heads + 8 = 532
    assert activation_bytes(ROUND, section(gradient_checkpointing="none"), 8) == (532.0, 0.0)
    # at the end of the backward pass: all gradients, no activations; at the loss: 16 x 2 x 532,
    # logits 16 x 100 x 2, states 16 x 10 x 10, head in bf16 2,000, its gradients 4,000 + 2,000
    assert found.moment == "loss"
    assert found.activations == 16 * 2 * 532
    assert found.logits == 3200 + 1600 + 2000 + 6000
    assert found.gradients == 0.0
    assert found.batch == 16 * (32 + 8)
    assert found.total == sum(found.parts().values())


def test_flash_attention_takes_no_mask():
    kind = section(gradient_checkpointing="none")
    # 26 x 10 + queries and result 4 x 10, keys and values 4 x 10 + 8 x 20 + 8 + 8 = 516
    assert activation_bytes(ROUND, kind, 8, masked=False)[0] == 516.0
    assert training_memory(ROUND, kind, 8).batch == 16 * 32
    on_sdpa = section(gradient_checkpointing="none", attn_implementation="sdpa")
    assert training_memory(ROUND, on_sdpa, 8, device="CPU").batch == 16 * 40


def test_fused_blocks_by_hand():
    # streams 8 x 10 + 8, queries and result 4 x 10, keys and values 4 x 10, gate and up 4 x 20
    kept = 248.0
    # of 16 tokens: the attention's, 4 x 10 + 6 x 10 + 12 x 10 = 220; scores of 2 heads, 8 x 8
    working = 16 * 220.0 + 12 * 2 * 8 * 8
    for kind in ("none", "selective"):
        found = fused_activations(ROUND, section(gradient_checkpointing=kind), 16, 8)
        assert found == (kept, working)
    found = fused_activations(ROUND, section(gradient_checkpointing="full"), 16, 8)
    assert found == (40.0, 16 * kept + working)
    # float32: streams as before, all else twice; attention's 4 x 10 + 12 x 10 + 16 x 10 = 320
    found = fused_activations(ROUND, section(precision="fp32"), 16, 8)
    assert found == (408.0, 16 * 320.0 + 12 * 2 * 8 * 8)
    memory = training_memory(ROUND, section(), 8, device="CPU")
    assert memory.moment == "backward"
    assert memory.weights == 4 * 4050  # no copies
    assert memory.activations == working
    assert memory.batch == 16 * (32 + 8 * 5)  # no mask; cosines and sines of a head of 5


@pytest.mark.parametrize(
    ("shape", "settings", "others", "expected"),
    [
        (ROUND, {}, {}, True),
        (ROUND, {}, {"model_type": "qwen2"}, True),
        (ROUND, {}, {"model_type": "gemma2"}, False),
        (ROUND, {}, {"device": "GPU"}, False),
        (ROUND, {}, {"sharded": True}, False),
        (ROUND, {"precision": "fp32"}, {}, True),
        (ROUND, {"attn_implementation": "sdpa"}, {}, False),
        (ROUND, {"compile": True}, {}, False),
        (ROUND, {"lora": {"rank": 3}}, {}, False),
        (MIXTRAL, {}, {}, False),
    ],
)
def test_which_blocks_are_fused(shape: ShapeSection, settings: dict, others: dict, expected: bool):
    assert is_fused(shape, section(**settings), **{"device": "CPU", **others}) is expected


def test_gradients_are_there_at_the_loss_after_the_first_micro_batch():
    found = training_memory(ROUND, section(gradient_checkpointing="none", micro_batch_size=1), 8)
    assert (found.moment, found.gradients) == ("loss", 4 * 4050)


def test_full_checkpointing_keeps_each_layers_input():
    # 4 x 10 a token and layer; one layer of 532 a token is computed again
    assert activation_bytes(ROUND, section(gradient_checkpointing="full"), 8) == (40.0, 532.0)


def test_selective_lies_between():
    kept = {
        kind: activation_bytes(SMOL, section(gradient_checkpointing=kind), 512)[0]
        for kind in ("full", "selective", "none")
    }
    assert kept["full"] < kept["selective"] < kept["none"]


def test_adapters_need_no_moments_of_the_weights():
    found = training_memory(ROUND, section(lora={"rank": 3}), 8)
    assert found.optimizer == 8 * 3 * 2 * 170


def test_fsdp_divides_parameters_gradients_and_moments():
    one = training_memory(LLAMA_3_70B, section(gradient_checkpointing="full"), 4096)
    eight = training_memory(
        LLAMA_3_70B, section(gradient_checkpointing="full"), 4096, processes=8, sharded=True
    )
    assert eight.optimizer == one.optimizer / 8
    assert eight.gradients == pytest.approx(one.gradients / 8, rel=0.2)
    alike = training_memory(LLAMA_3_70B, section(), 4096, processes=8)
    assert alike.optimizer == one.optimizer  # DDP divides nothing


@pytest.mark.parametrize(
    ("settings", "length", "gigabytes"),
    # Peaks of SmolLM2 measured by benchmarks/plan.py on 2026-11-25 (torch 2.13, glibc).
    [
        ({}, 512, 2.961),
        ({"gradient_checkpointing": "none"}, 512, 2.955),
        ({"gradient_checkpointing": "full"}, 512, 2.868),
        ({"lora": {"rank": 64}}, 512, 2.570),
        # Fused in float32, on 2026-11-30.
        ({"precision": "fp32"}, 512, 3.48),
        ({"precision": "fp32", "gradient_checkpointing": "full"}, 512, 2.97),
        ({"precision": "fp32", "micro_batch_size": 4, "global_batch_size": 4}, 512, 4.70),
        ({"micro_batch_size": 8, "global_batch_size": 8}, 256, 3.386),
        ({"micro_batch_size": 4, "global_batch_size": 4}, 1024, 4.51),
        ({"micro_batch_size": 1, "global_batch_size": 1}, 2048, 3.43),
        ({"micro_batch_size": 1}, 512, 3.08),
    ],
)
def test_within_a_tenth_of_measured_peaks(settings: dict, length: int, gigabytes: float):
    found = training_memory(SMOL, section(**settings), length, device="CPU")
    assert found.total / 1e9 == pytest.approx(gigabytes, rel=0.1)


def test_saving_counts_on_a_cpu():
    plain = training_memory(SMOL, section(), 512, device="CPU")
    saving = training_memory(SMOL, section(), 512, device="CPU", saves=True)
    assert saving.total - plain.total == 12 * 134_515_008
    assert training_memory(SMOL, section(), 512, device="GPU", saves=True).saving == 0.0


def test_70b_on_eight_h100_does_not_fit_in_full_and_fits_on_more():
    fleet = Fleet(8, DEVICES["H100"])
    ways = ways_to_train(LLAMA_3_70B, section(), 8192, fleet)
    assert not ways[0].fits
    assert ways[0].memory.optimizer == 8 * 70_553_706_496 / 8
    # Two blocks of 8,192 keep over 200 GB of activations on each device, however many there are.
    assert ways[0].fewest is None
    assert ways[0].memory.largest == "activations"
    assert ways[1].fewest is not None
    assert ways[1].fewest > 8
    text = misfit(ways, fleet, [DEVICES["H200"]], "Llama-3-70B")
    assert text is not None
    assert "Llama-3-70B does not fit 8xH100" in text
    assert "the largest part: activations" in text
    assert "LoRA r=64, sparing (gradient_checkpointing: full, micro_batch_size: 1)" in text


def test_what_fits_is_no_problem_and_the_fewest_is_the_fewest():
    fleet = Fleet(1, DEVICES["H100"])
    ways = ways_to_train(SMOL, section(), 512, fleet)
    assert misfit(ways, fleet, [], "SmolLM2") is None
    small = Device("S", 3.0e9, 1e12, 1.0, 0.4)
    (full, *_) = ways_to_train(SMOL, section(), 512, Fleet(1, small))
    assert full.fewest is not None
    assert fits(memory_on(SMOL, section(), 512, Fleet(full.fewest, small)), small)
    assert not fits(memory_on(SMOL, section(), 512, Fleet(full.fewest // 2, small)), small)


def test_a_recipe_with_adapters_is_judged_by_them():
    ways = ways_to_train(SMOL, section(lora={"rank": 8}), 512, Fleet(1, DEVICES["L40S"]))
    assert [way.name for way in ways[:2]] == ["LoRA r=8", "LoRA r=8, sparing"]


def test_a_recipe_that_is_sparing_already_has_no_second_column():
    spare = section(gradient_checkpointing="full", micro_batch_size=1)
    ways = ways_to_train(SMOL, spare, 512, Fleet(1, DEVICES["L40S"]))
    assert [way.name for way in ways] == ["full", "LoRA r=64"]
