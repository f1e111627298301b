"""What the proxy counts. Labels are taken from fixed sets, never from what a client sends."""

from prometheus_client import Counter, Gauge

CLIENT_CONNECTIONS = Gauge("sheaf_gateway_client_connections", "Open connections from clients")
REFUSALS = Counter("sheaf_gateway_refusals_total", "Requests refused before the application", ["code"])
CLIENTS_GONE = Counter("sheaf_gateway_clients_gone_total", "Clients that left before their response was complete")
STALLED_CLIENTS = Counter("sheaf_gateway_stalled_clients_total", "Clients closed because they stopped reading")
APP_FAILURES = Counter("sheaf_gateway_app_failures_total", "Requests that the application failed to answer")
UPSTREAM_CONNECTIONS = Gauge("sheaf_gateway_upstream_connections", "Open connections to engines")
UPSTREAM_ERRORS = Counter("sheaf_gateway_upstream_errors_total", "Failed exchanges with engines", ["kind"])
STALE_RETRIES = Counter(
    "sheaf_gateway_upstream_stale_retries_total", "Requests sent again because a kept connection had been closed"
)
