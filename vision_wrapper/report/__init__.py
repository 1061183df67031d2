"""The report of a run: one self-contained HTML file, or a README with its pictures, made from the run folder."""

from vision_wrapper.report.comparison import compare
from vision_wrapper.report.gallery import write_gallery
from vision_wrapper.report.markdown import write_markdown
from vision_wrapper.report.page import write

__all__ = ["compare", "write", "write_gallery", "write_markdown"]
