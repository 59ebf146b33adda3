"""What a recipe says about training. No torch here.

What a recipe says about fine-tuning after the merge. No torch here.

What a recipe says about new tokens and the chat template. No torch here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from toolkit.data.config import DataSection
from toolkit.section import Count, Fraction, Length, PositiveInt, Section, at_most


class ScheduleSection(Section):
    """How the learning rate moves when pre-training resumes on a new domain."""

    former_keys: ClassVar = {
        "rewarm_fraction": "warmup_fraction",
        "final_fraction": "final_lr_fraction",
        "constant_fraction": "constant_lr_fraction",
    }

    kind: Literal["cosine", "wsd", "infinite", "minimum", "constant"] = "cosine"
    """`cosine`: re-warm, then fall along a cosine (Ibrahim et al. 2024). `wsd`: re-warm, hold, fall
    in the last `decay_fraction` (Hu et al. 2024). `infinite`: re-warm, cool down to a constant that
    any later `toolkit cpt anneal` starts from (Singh et al. 2025). `minimum`: no warm-up, from
    `peak_lr` (the pre-training's last rate) along a cosine (Parmar et al. 2024, who end at a
    hundredth). `constant`: re-warm and hold."""

    peak_lr: Annotated[float, Field(gt=0.0)] = 2e-4
    """Learning rate reached at the end of re-warming; the knob that matters most (Gupta 2023)."""

    warmup_fraction: Fraction = 0.02
    """Fraction of all steps spent rising linearly to `peak_lr`; 0.01 to 0.03 is usual."""

    final_lr_fraction: Fraction = 0.1
    """Learning rate at the end, as a fraction of `peak_lr`."""

    decay_fraction: Fraction = 0.2
    """Fraction of all steps that `wsd` falls in, as 1 - sqrt (Hägele et al. 2024)."""

    cooldown_fraction: Fraction = 0.3
    """Fraction of all steps in which `infinite` comes down from the peak to its constant."""

    constant_lr_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """The constant rate of `infinite`, as a fraction of `peak_lr`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        after = {"wsd": self.decay_fraction, "infinite": self.cooldown_fraction}
        if self.warmup_fraction + after.get(self.kind, 0.0) > 1.0:
            raise ValueError(
                f"warmup_fraction and the fraction of {self.kind} must not exceed 1 together"
            )
        return self


class OptimizerSection(Section):
    """AdamW (Loshchilov & Hutter 2019)."""

    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Applied to matrices and embeddings; norms and biases are left alone."""

    embedding_lr_scale: Annotated[float, Field(ge=0.0)] = 1.0
    """Multiplies the learning rate of input and output embeddings; 0 keeps them as they are."""


class LoraSection(Section):
    """Low-rank adapters through peft, merged into the weights when training is done."""

    former_keys: ClassVar = {"modules": "target_modules"}

    rank: Count = 64
    """r. Learns less and forgets less than full training (Biderman et al. 2024)."""

    alpha: Annotated[float, Field(gt=0.0)] | None = None
    """Scale is alpha / rank; by default twice the rank."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024)."""

    target_modules: tuple[str, ...] | None = None
    """Names of linear modules that get adapters; by default all but the output head."""


class BlockExpansionSection(Section):
    """New blocks between the old, of which only the new learn (Wu et al. 2024, LLaMA Pro)."""

    num_blocks: Count = 4
    """Copies of blocks, spread evenly, that change nothing until they are trained."""


class ForgettingMonitorSection(Section):
    """What is forgotten while training: bits per byte of the validation sets, as training goes."""

    former_keys: ClassVar = {"gate": "action"}

    evaluations: Annotated[int, Field(ge=0), at_most("COUNT")] = 4
    """How often in a run, besides before and after; 0 turns the monitor off."""

    tokens_per_role: PositiveInt = 2500
    """How much of each validation set is scored."""

    tolerance: Annotated[float, Field(ge=0.0)] = 0.05
    """Rise of bits per byte on general text, against the start, up to which nothing is done."""

    action: Literal["warn", "stop", "raise_replay"] = "warn"
    """What to do beyond it. `stop` ends training there and keeps what was learned; `raise_replay`
    doubles the fraction of general text from there on, to one half at most."""


class SelfDistillationSection(Section):
    """Keep the general model by its own words: before training it writes conversations, and every
    step adds how far the model in training has moved from it at each of their tokens."""

    weight: Annotated[float, Field(gt=0.0)] = 3.0
    """Of the divergence KL(general model || model in training), in nats per token, beside the mean
    loss of the step."""

    num_tokens: Annotated[PositiveInt, at_most("TOKENS")] = 30_000
    """Tokens that the general model writes, its users' turns included."""

    tokens_per_step: Annotated[Length, Field(ge=16)] = 256
    """Tokens of conversations beside each step's blocks; a longer conversation is cut to it."""

    temperature: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """At which they are drawn. 1 draws from the very distribution that is to be kept."""

    max_new_tokens: Length = 160
    """Longest turn; a user's turn that does not end within it is left out, an answer is cut."""

    top_tokens: Annotated[int, Field(ge=1), at_most("COUNT")] = 64
    """Of the general model's distribution at each token so many probabilities are kept, and the sum
    of the rest."""


def _word_of_switch(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class HealSection(Section):
    """Repair by distillation: `toolkit heal`. A finished model is drawn back to the general one on
    conversations, round by round, for as long as that helps and the domain gain stays."""

    source: Literal["merge", "specialist"] = "merge"
    """The model that is healed; the stages that make it run first where needed."""

    policy: Annotated[Literal["off", "on"], BeforeValidator(_word_of_switch)] = "off"
    """`off`: the model learns conversations that the general model wrote once, by its distribution
    at each token, KL(general model || model). `on`: it answers itself what the general model asks
    as a user, as it is in each round, and learns what the general model thinks of each token of its
    answers, KL(model || general model)."""

    num_tokens: Annotated[PositiveInt, at_most("TOKENS")] = 20_000
    """Tokens of conversations to learn from at most."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-5
    temperature: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """At which conversations are drawn."""

    give_back: Fraction = 0.02
    """Fraction of the domain gain, on the validation sets, that may be given back for it: a round
    that goes beyond is undone, and the last."""

    tolerance_fraction: Fraction = 0.25
    """Healing ends where each general set is shown to lose no more than this fraction of its
    tolerance."""

    def as_distillation(self) -> SelfDistillationSection:
        """How conversations are written and learned."""
        return SelfDistillationSection(
            weight=1.0, num_tokens=self.num_tokens, temperature=self.temperature
        )

    def as_training(self) -> TrainSection:
        """What the steps of healing have in common with those of training."""
        return TrainSection(
            global_batch_size=1,
            micro_batch_size=1,
            schedule=ScheduleSection(kind="constant", peak_lr=self.learning_rate),
            optimizer=OptimizerSection(weight_decay=0.0),
            forgetting_monitor=ForgettingMonitorSection(evaluations=0),
        )


class AnnealSection(Section):
    """The end of training, made from a state of the constant phase: `toolkit cpt anneal`."""

    former_keys: ClassVar = {"final_fraction": "final_lr_fraction"}

    steps: Annotated[float, Field(gt=0.0)] = 0.1
    """How long: a number of steps, or below 1 a fraction of the steps before it (MiniCPM and Hägele
    et al. 2024 find 0.1 to 0.2 enough)."""

    shape: Literal["sqrt", "linear", "cosine"] = "sqrt"
    """How the rate falls: `sqrt` is 1 - sqrt (Hägele et al. 2024)."""

    final_lr_fraction: Fraction = 0.0
    """Learning rate at the end, as a fraction of the constant one."""


class AverageSection(Section):
    """The mean of the last states, in place of annealing: `toolkit checkpoint average`."""

    last: Annotated[int, Field(ge=2), at_most("COUNT")] = 4
    """How many of the latest states; `save_total_limit` must keep as many."""

    weights: Literal["uniform", "exponential", "anneal"] = "uniform"
    """`exponential`: each state counts `decay` times as much as the one after it. `anneal`: as the
    rates of `train.anneal` (its shape and end) would have counted the steps between the states,
    which emulates that decay without training it."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    """For `exponential` weights."""


class StageTrainingSection(Section):
    """What is different in one stage of `data.stages`."""

    schedule: ScheduleSection | None = None
    """Over this stage's own steps, with its own warm-up and decay. The common schedule runs over
    the stages without one, as though those with one were not there."""

    rope_theta: Annotated[float, Field(gt=0.0)] | None = None
    """Base of the rotary positions from this stage on: a larger one makes room for longer blocks
    (Code Llama: 1e6). The specialist is saved with it; it cannot be merged with the general model,
    whose attention was learned at another base."""

    max_position_embeddings: Length | None = None
    """Longest sequence the model is for, from this stage on; by default its own, and with
    `rope_theta` at least the stage's blocks."""


class TrainSection(Section):
    """Continued pre-training."""

    former_keys: ClassVar = {
        "blocks_per_step": "global_batch_size",
        "micro_batch_blocks": "micro_batch_size",
        "clip_norm": "max_grad_norm",
        "max_bad_steps": "max_nonfinite_steps",
        "save_every_steps": "save_steps",
        "keep_states": "save_total_limit",
        "keep_when_done": "keep_checkpoints",
        "watch": "forgetting_monitor",
        "growth": "block_expansion",
        "attention": "attn_implementation",
    }

    start: str | None = None
    """A name of `models:` that training starts from, in place of the general model: the base model
    under an instruct one. What training changed is then added to the general model, `general +
    α·(specialist − start)`: that is the plain sweep. Name it `base`, as files of `merges/` do."""

    epochs: Count = 1
    """Passes over every stage; each has its own order."""

    global_batch_size: Count = 2
    """Blocks in one optimizer step, over all processes together."""

    micro_batch_size: Count = 2
    """Blocks in one forward pass of one process; gradients accumulate up to `global_batch_size`."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`bf16`: float32 parameters, bfloat16 matrix products (autocast). `fp32`: all float32. `auto`:
    the one that this machine multiplies faster in, as `toolkit machine` measures it."""

    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this norm where they exceed it."""

    gradient_checkpointing: Literal["none", "selective", "full"] = "selective"
    """Which activations are computed again in the backward pass rather than kept. `selective`: all
    but the results of matrix products and attention, at hardly any time; `full`: whole blocks, for
    the least memory. The numbers are the same, bit for bit. On a CPU, models of the Llama
    family train with fused blocks that keep no more than `selective` does, so that `none` is the
    same there."""

    compile: bool = False
    """Compile the model with `torch.compile`: minutes at the start, faster from then on."""

    trainable: tuple[str, ...] = ("*",)
    """Patterns of parameter names that learn; the others stay as they are."""

    lora: LoraSection | None = None
    """Train adapters instead of the weights."""

    block_expansion: BlockExpansionSection | None = None
    """Add blocks and train those alone. The specialist is then deeper than the general model, so
    the two cannot be merged."""

    max_nonfinite_steps: PositiveInt = 5
    """Steps in a row whose loss or gradient is not finite, after which training stops; each such
    update is refused."""

    save_steps: PositiveInt = 50
    """How often the state is written from which an interrupted run continues."""

    save_total_limit: Count = 1
    """How many of the latest states are kept while training."""

    keep_checkpoints: bool = False
    """Keep the states, in `cpt/states/`: `toolkit cpt anneal` and `toolkit checkpoint average` need
    them."""

    keep_best: bool = False
    """Keep the state whose domain figure was the best while the general one stayed within the
    forgetting monitor's tolerance, besides the latest; it stays in `cpt/states/`. The monitor
    scores the first documents of the validation sets."""

    use: Literal["last", "best", "anneal", "average"] = "last"
    """What the specialist is that later stages take: the model as training left it, the best state
    (see `keep_best`), what `anneal` makes of the last constant state, or `average` of the last. The
    best state was picked by part of the validation documents that later choose the merge, so
    figures on these flatter it a little; the report says so, and test documents were not seen."""

    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed. `auto`: flash-attention on a GPU that has it, else PyTorch's own
    (sdpa). flash-attention is given where documents begin, the others a mask."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go beside `metrics.jsonl`, through accelerate; install what you name."""

    schedule: ScheduleSection = ScheduleSection()
    stages: dict[str, StageTrainingSection] = Field(default_factory=dict)
    """What is different in stages of `data.stages`, by their names."""

    optimizer: OptimizerSection = OptimizerSection()
    forgetting_monitor: ForgettingMonitorSection = ForgettingMonitorSection()
    self_distillation: SelfDistillationSection | None = None
    """Stay near the general model on conversations of its own; `null`, the default, does not."""

    anneal: AnnealSection = AnnealSection()
    average: AverageSection = AverageSection()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.lora is not None and self.block_expansion is not None:
            raise ValueError("give lora or block_expansion, not both")
        if self.trainable != ("*",) and (self.lora or self.block_expansion):
            raise ValueError("trainable names parameters; lora and block_expansion train their own")
        if (self.keep_best or self.use == "best") and self.forgetting_monitor.evaluations == 0:
            raise ValueError(
                "the best state is found by the monitor, and forgetting_monitor.evaluations is 0"
            )
        if self.use in {"anneal", "average"} and not self.keep_checkpoints:
            raise ValueError(f"use: {self.use} is made of kept states; set keep_checkpoints: true")
        if self.use == "average" and self.save_total_limit < self.average.last:
            raise ValueError(
                f"use: average takes {self.average.last} states; set save_total_limit to as many "
                f"(it is {self.save_total_limit})"
            )
        if self.start is not None and (self.self_distillation or self.block_expansion):
            other = "self_distillation" if self.self_distillation else "block_expansion"
            raise ValueError(f"start: {self.start} cannot be combined with {other}; leave one out")
        if self.start is not None and self.use == "average":
            raise ValueError("start: cannot be combined with use: average; leave one out")
        if self.use == "anneal" and self.has_own_schedules:
            raise ValueError("use: anneal is for one schedule, and stages have their own")
        return self

    @property
    def has_own_schedules(self) -> bool:
        """Whether a stage has a schedule of its own."""
        return any(stage.schedule is not None for stage in self.stages.values())

    @property
    def keeps_best(self) -> bool:
        """Whether the best state is looked for."""
        return self.keep_best or self.use == "best"


def watch_decides(section: TrainSection) -> bool:
    """Whether figures of the monitor change what is trained or kept, rather than being shown."""
    return section.forgetting_monitor.action != "warn" or section.keeps_best


def without_effect(section: TrainSection) -> tuple[str, ...]:
    """Keys of a stage's identity that change nothing under these settings."""
    return () if watch_decides(section) else ("config.train.forgetting_monitor.tolerance",)


WITHOUT_EFFECT = ("save_steps", "save_total_limit", "keep_checkpoints", "keep_best", "trackers")
"""Settings that change no number of a run, so that changing them repeats nothing."""


def identity_of(section: TrainSection) -> dict[str, object]:
    """The settings that the numbers of the loop depend on: what is made of its states afterwards
    is a stage of its own.

    >>> "anneal" in identity_of(TrainSection())
    False
    """
    values = section.model_dump(mode="json", exclude={*WITHOUT_EFFECT, "anneal", "average"})
    # Keys that came later are left out where they say what was done before there were any: else
    # every stage trained before would count as outdated.
    if section.use != "best":
        del values["use"]
    if section.attn_implementation == "auto":
        del values["attn_implementation"]
    if not section.stages:
        del values["stages"]
    if section.self_distillation is None:
        del values["self_distillation"]
    if section.start is None:
        del values["start"]
    return values


class SftSection(Section):
    """Fine-tuning on conversations: the same data stage and the same loop, with other settings.

    Generic text replayed while fine-tuning helps the target as well (Kotha & Liang 2026), so `data`
    needs a general source here too.
    """

    start: Literal["merge", "specialist", "general"] = "merge"
    """The model to start from; the stages that make it run first where needed."""

    data: DataSection
    """As `data` of the recipe. Sources with `messages_field` are conversations: they go through the
    chat template, and only the assistant's words are learned and scored."""

    train: TrainSection
    """As `train` of the recipe, and nothing is taken over from it: a rate ten times lower, and a
    few epochs, are usual."""

    @model_validator(mode="after")
    def _own_end(self) -> Self:
        if self.train.use in {"anneal", "average"}:
            raise ValueError(f"train.use: {self.train.use} is for cpt; give last or best")
        return self


class TokenizerSection(Section):
    """New tokens for the words of the domain, before anything is tokenized.

    Worth it where domain words fall into many pieces and there is enough text to learn the new rows
    from (hundreds of occurrences each); the report says what is saved. General model and specialist
    then both have the new tokens, so that they can be merged; the general model, whose new rows are
    means of old ones, reads the domain somewhat worse than it did until it is trained.
    """

    former_keys: ClassVar = {"special": "special_tokens"}

    new_tokens: PositiveInt | None = None
    """How many byte-pair merges to add at most."""

    special_tokens: tuple[str, ...] = ()
    """Tokens to add by name, such as those of fill-in-the-middle that `data.fim.tokens` uses. They
    never come out of text, and begin as the mean of the pieces of their names."""

    chat_template: str | None = None
    """How conversations are written (Jinja, as transformers has it), in place of the tokenizer's
    own: for a pre-trained model that has none and is to be fine-tuned on conversations."""

    min_count: PositiveInt = 50
    """A token must save as many in the text that is looked at."""

    sample_characters: PositiveInt = 20_000_000
    """How much training text of each domain source is looked at, in characters: documents in the
    order of their hash, as the data stage takes them."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.new_tokens is None and not self.special_tokens and self.chat_template is None:
            raise ValueError("give new_tokens, special_tokens, chat_template, or several of them")
        if self.chat_template is not None and "{" not in self.chat_template:
            raise ValueError(
                f"chat_template: must be a template in Jinja (got {self.chat_template!r})"
            )
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError("special_tokens: a token stands twice")
        return self


def identity_of_tokenizer(section: TokenizerSection) -> dict[str, object]:
    """The settings that the extended model depends on."""
    values = section.model_dump(mode="json")
    if not section.special_tokens:
        del values["special_tokens"]
    if section.chat_template is None:
        del values["chat_template"]
    return values
