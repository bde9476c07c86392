"""The size of a plan beside the size of its weights, as a line for people.

A plan is little more than its weights. TensorRT can keep a weight once for each of several layouts, which a GPU would
have to hold too.
"""

from collections.abc import Iterator

from engine.plan.manifest import Graph, GraphName

CURE = (
    "build one --profile, or give all the same largest batch; if that does not help, report it with this line and the "
    "profiles"
)


def describe(name: GraphName, graph: Graph, plan_bytes: int) -> Iterator[str]:
    """Yield a line with both sizes, and a warning if the plan holds weights twice."""
    weights = "no weights"
    if graph.weight_bytes:
        ratio = plan_bytes / graph.weight_bytes
        weights = f"{graph.weight_bytes / 1e6:,.1f} MB of weights, ratio {ratio:.2f}"
    yield f"{name}: a plan of {plan_bytes / 1e6:,.1f} MB for {weights}"
    if not graph.activation_bytes:
        yield (
            f"warning: the memory that the {name} works in is unknown, since TensorRT's log has not one figure for "
            "each profile; the plan of GPU memory cannot count it"
        )
    if graph.repeats_weights(plan_bytes):
        yield f"warning: the plan of the {name} holds weights twice, and GPU memory will too; to avoid it, {CURE}"
