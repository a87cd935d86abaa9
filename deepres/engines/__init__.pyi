from .torch_compiled import Optimized as Optimized
from .torch_compiled import fold_norms as fold_norms
from .torch_compiled import optimize as optimize
from .torch_compiled import throughput as throughput
