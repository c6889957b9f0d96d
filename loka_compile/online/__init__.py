"""Online: without plan or profile, a model's first calls are measured, then it is planned, and watched from then on.

    measure    the first calls of a graph run op by op, without code generation, and Probe watches them
    plan       the graph's epoch moves, Dynamo's guard on it fails, and the same graph is compiled under a plan
    watch      one call in N is measured again; N follows from what that costs and from `max_probe_overhead`
    demote     a lowered site that left its error budget is kept from now on: said once, written down, the epoch moves

Every graph of every model has a session of its own, so statistics of two models, or of training and serving one,
never mix. LoKA Probe measures every 100th call and saves every 10,000th.
"""

from loka_compile.online.session import Session, session_of

__all__ = ["Session", "session_of"]
