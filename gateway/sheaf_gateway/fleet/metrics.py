"""What the fleet room counts. Labels come from fixed sets."""

from prometheus_client import Counter, Gauge

SNAPSHOT_VERSION = Gauge("sheaf_gateway_fleet_version", "Version of the fleet snapshot in use")
SNAPSHOT_REFUSED = Counter("sheaf_gateway_fleet_refused_total", "Fleet snapshots that could not be read")
SNAPSHOT_PROBLEMS = Gauge("sheaf_gateway_fleet_problems", "Parts of the last snapshot that were left out")
AGENT_ERRORS = Counter("sheaf_gateway_agent_errors_total", "Failed calls to agents", ["call"])
AGENTS_KNOWN = Gauge("sheaf_gateway_agents_known", "Pods whose agent has reported")
ADAPTER_LOADS = Counter("sheaf_gateway_adapter_loads_total", "Adapter loads that requests asked for", ["result"])
