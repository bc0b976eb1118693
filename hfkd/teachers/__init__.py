"""Teachers: frozen networks, and what one pass of them over the training set tells."""

from hfkd.teachers.live import LiveTeacher, Teachers, place
from hfkd.teachers.scan import TeacherScan, scan

__all__ = ["LiveTeacher", "TeacherScan", "Teachers", "place", "scan"]
