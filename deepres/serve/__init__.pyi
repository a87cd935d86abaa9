from .app import build_app as build_app
from .limits import Limits as Limits
from .server import serve as serve
