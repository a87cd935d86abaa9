from .choosing import build_choice as build_choice
from .choosing import optimize as optimize
from .choosing import throughput as throughput
from .folding import fold_norms as fold_norms
from .optimized import Candidate as Candidate
from .optimized import Choice as Choice
from .optimized import Optimized as Optimized
from .registry import ENGINES as ENGINES
