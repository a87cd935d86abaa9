from .api import ShrinkResult as ShrinkResult
from .api import shrink as shrink
from .api import time_ratio as time_ratio
from .constraint import ResidualConstraint as ResidualConstraint
from .curriculum import InverseCurriculum as InverseCurriculum
from .schedule import ShrinkSchedule as ShrinkSchedule
from .target import Target as Target
