"""Teachers: frozen networks, and what one pass of them over the training set tells."""

from hfkd.teachers.cache import CachedTeacher
from hfkd.teachers.live import LiveTeacher, place
from hfkd.teachers.scan import TeacherScan, scan

__all__ = ["CachedTeacher", "LiveTeacher", "TeacherScan", "place", "scan"]
