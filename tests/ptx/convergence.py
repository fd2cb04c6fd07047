"""In which order the blocks of a kernel run, so that lanes that have parted meet again.

A GPU's compiler lets them meet where their paths do, wherever it has put the blocks. Here the
earliest block with lanes runs next: a block has to come after all that lead to it, and all of a
loop before what follows the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

Graph = Sequence[Sequence[int]]


def convergence_order(successors: Graph) -> list[int]:
    """Return the blocks in such an order; block 0 is where a kernel begins."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for other in following:
            predecessors[other].append(block)

    def order(blocks: list[int], entry: int) -> list[int]:
        inside = set(blocks)
        reduced = {x: [y for y in successors[x] if y in inside and y != entry] for x in blocks}
        found = []
        for component in _components(reduced):
            if len(component) == 1:
                found += component
                continue
            members = set(component)
            entered = [x for x in component if any(y not in members for y in predecessors[x])]
            found += order(component, min(entered, default=min(component)))
        return found

    return order(list(range(len(successors))), 0)


def _components(graph: dict[int, list[int]]) -> list[list[int]]:
    """Strongly connected components, each after those that lead to it (Tarjan 1972)."""
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    components = []
    for root in graph:
        if root in number:
            continue
        work = [(root, iter(graph[root]))]
        number[root] = lowest[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            block, following = work[-1]
            for other in following:
                if other not in number:
                    number[other] = lowest[other] = len(number)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(graph[other])))
                    break
                if other in on_stack:
                    lowest[block] = min(lowest[block], number[other])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[block])
                if lowest[block] == number[block]:
                    cut = stack.index(block)
                    component, stack = stack[cut:], stack[:cut]
                    on_stack.difference_update(component)
                    components.append(component)
    return components[::-1]
