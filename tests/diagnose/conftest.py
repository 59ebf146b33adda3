"""The family of tiny models that merges are tested on."""

from tests.merge.conftest import family as family
from tests.merge.conftest import write as write
