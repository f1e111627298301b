"""What the fleet room counts. Labels come from fixed sets."""

from prometheus_client import Counter, Gauge

SNAPSHOT_VERSION = Gauge("sheaf_gateway_fleet_version", "Version of the fleet snapshot in use")
SNAPSHOT_REFUSED = Counter("sheaf_gateway_fleet_refused_total", "Fleet snapshots that could not be read")
SNAPSHOT_PROBLEMS = Gauge("sheaf_gateway_fleet_problems", "Parts of the last snapshot that were left out")
AGENT_ERRORS = Counter("sheaf_gateway_agent_errors_total", "Failed calls to agents", ["call"])
AGENTS_KNOWN = Gauge("sheaf_gateway_agents_known", "Pods whose agent has reported")
ADAPTER_LOADS = Counter("sheaf_gateway_adapter_loads_total", "Adapter loads that requests asked for", ["result"])
PODS_SUSPECT = Gauge("sheaf_gateway_pods_suspect", "Pods whose agent does not answer: the last choice")
AGENTS_LEFT_OUT = Gauge("sheaf_gateway_agents_left_out", "Pods whose agent is not asked because there are too many")
WATCH_CONNECTED = Gauge("sheaf_gateway_watch_connected", "Whether a kind is watched now", ["kind"])
WATCH_AWAY_SINCE = Gauge(
    "sheaf_gateway_watch_away_since_seconds", "Unix time since which a kind cannot be watched; 0: it is", ["kind"]
)
WATCH_EVENTS = Counter("sheaf_gateway_watch_events_total", "Watch events", ["kind", "type"])
WATCH_LISTS = Counter("sheaf_gateway_watch_lists_total", "Full lists", ["kind", "reason"])
WATCH_ERRORS = Counter("sheaf_gateway_watch_errors_total", "Failed calls to the API server", ["kind", "status"])
OBJECTS_LEFT_OUT = Gauge("sheaf_gateway_objects_left_out", "Objects that cannot be read", ["kind"])
SNAPSHOT_WRITES = Counter("sheaf_gateway_snapshot_writes_total", "Writes of the fleet snapshot", ["result"])
SNAPSHOT_WRITTEN = Gauge("sheaf_gateway_snapshot_written_seconds", "Unix time of the last write of the fleet snapshot")
KV_SUBSCRIPTIONS = Gauge("sheaf_gateway_kv_subscriptions", "Engines whose KV events are heard")
KV_BLOCKS = Gauge("sheaf_gateway_kv_blocks", "KV blocks that engines announced to hold")
KV_GAPS = Counter("sheaf_gateway_kv_gaps_total", "KV events that were missed and could not be replayed")
KV_ERRORS = Counter("sheaf_gateway_kv_errors_total", "Subscriptions to KV events that broke off", ["error"])
