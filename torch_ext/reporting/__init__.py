"""What was found out about a program, for people and for other tools.

Everything is made from a Program and a Plan, so it is the same for every door. Needs no
torch. The same findings give the same bytes.
"""

from torch_ext.reporting.findings import Findings
from torch_ext.reporting.page import to_html
from torch_ext.reporting.timeline import to_csv, to_trace

__all__ = ["Findings", "to_csv", "to_html", "to_trace"]
