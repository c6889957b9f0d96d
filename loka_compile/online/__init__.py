"""Online: without plan or profile, a model's first calls are measured, then it is planned, and watched from then on.

    calls.py      what Dynamo calls: finds out who calls, and runs the graph op by op or what was compiled
    measure       the first calls of a graph run op by op, without code generation, and Probe watches them
    plan          at the next call the plan is settled, raced and compiled, outside of Dynamo: nothing is compiled again
                  for it, no guard is added
    watch         one call in N is measured again; N follows from what that costs and from `max_probe_overhead`
    demote        a lowered site that left its error budget is kept from now on: said once, written down

Every graph of every model has a session of its own, so statistics of two models, or of training and serving one,
never mix. LoKA Probe measures every 100th call and saves every 10,000th.
"""

from loka_compile.online.calls import Calls
from loka_compile.online.sessions import Sessions, forget_sessions, learns

__all__ = ["Calls", "Sessions", "forget_sessions", "learns"]
