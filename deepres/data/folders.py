"""Folders of the user, under the names that ``deepres.data`` has for them."""

from deepres.paths import cache_folder, user_path

__all__ = ["cache_folder", "user_path"]
