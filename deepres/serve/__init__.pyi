from .app import build_app as build_app
from .completions import build_completions as build_completions
from .limits import Limits as Limits
from .server import serve as serve
