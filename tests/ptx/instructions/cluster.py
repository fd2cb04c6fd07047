"""Clusters: addresses in the shared memory of other CTAs.

Loads, stores and atomics on them stand in `memory`, the cluster's barrier in `forms.CONTROL`.
"""

from __future__ import annotations

from tests.ptx.forms import define

define("mapa.shared::cluster.u32", "u32 = u32, u32", "cluster_memory.map_address(a, b)")
define("mapa.shared::cluster.u64", "u64 = u64, u32", "cluster_memory.map_address(a, b)")
define("mapa.u64", "u64 = u64, u32", "cluster_memory.map_address(a, b)")
define("getctarank.shared::cluster.u32", "u32 = u32", "cluster_memory.rank_of(a)")
define("getctarank.u64", "u32 = u64", "cluster_memory.rank_of(a)")
