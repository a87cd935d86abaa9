"""Settings of a small detector."""

# a detector that learns the rectangles in a few seconds
TINY = {
    "size": 64,
    "longest": 64,
    "channels": 16,
    "width": 32,
    "samples": 32,
    "proposals": (60, 40),
    "anchors": (12.0, 20.0, 32.0, 48.0),
}
