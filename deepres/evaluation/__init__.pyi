from .measurement import Evaluation as Evaluation
from .measurement import measure as measure
from .profile import block_times as block_times
from .profile import branch_times as branch_times
from .timing import time_against as time_against
from .use import Prediction as Prediction
from .use import evaluate as evaluate
from .use import predict as predict
