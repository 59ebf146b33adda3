"""What a recipe says about evaluation. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolkit.config import PositiveInt, Section


class EvaluateSection(Section):
    """Likelihood of held-out documents, in bits per byte."""

    window_tokens: Annotated[int, Field(ge=2)] = 512
    """Longer documents are scored window by window, each token once."""

    context_tokens: Annotated[int, Field(ge=1)] = 1
    """Tokens of the previous window that each further window sees as context. 1 is what lm-eval's
    rolling likelihood does."""

    batch_tokens: PositiveInt = 4096
    """Tokens scored at once; bounds memory, changes no result beyond rounding."""

    precision: Literal["stored", "fp32"] = "stored"
    """`stored`: models are scored in the type they are stored in, as they will be used."""

    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples behind each interval."""

    prompts: tuple[str, ...] = ()
    """Prompts of the domain, answered by all three models in the report, after a few general ones
    of ours. They show; they choose nothing."""
