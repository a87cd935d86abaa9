from .degradation import Curve as Curve
from .degradation import Findings as Findings
from .degradation import degrade as degrade
