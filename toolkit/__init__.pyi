from toolkit.errors import ToolkitError as ToolkitError
from toolkit.evaluate.compare import run_evaluation as score_models
from toolkit.merge.config import load_merge_config as load_merge_config
from toolkit.merge.to_disk import run_merge as run_merge
from toolkit.pipeline.models import ensure_data as prepare_data
from toolkit.pipeline.models import ensure_specialist as train_specialist
from toolkit.pipeline.run import Run as Run
from toolkit.pipeline.stages import choose_merge as choose_merge
from toolkit.plan.new_recipe import InitRequest as InitRequest
from toolkit.plan.new_recipe import init_recipe as init_recipe
from toolkit.recipe.load import load_recipe as load_recipe
from toolkit.select.results import MergeResults as MergeResults
from toolkit.select.results import read_results as read_results

__version__: str
__all__ = [
    "InitRequest",
    "MergeResults",
    "Run",
    "ToolkitError",
    "__version__",
    "choose_merge",
    "init_recipe",
    "load_merge_config",
    "load_recipe",
    "prepare_data",
    "read_results",
    "run_merge",
    "score_models",
    "train_specialist",
]
