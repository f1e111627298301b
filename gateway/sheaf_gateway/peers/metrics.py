"""What is counted of gossip. Labels are fixed words."""

from prometheus_client import Counter, Gauge

PEERS = Gauge("sheaf_gateway_gossip_peers", "Other gateways that are heard")
SENT = Counter("sheaf_gateway_gossip_sent_total", "Batches of gossip sent, for each receiver", ["link"])
HEARD = Counter("sheaf_gateway_gossip_heard_total", "Batches of gossip that counted")
DROPPED = Counter("sheaf_gateway_gossip_dropped_total", "Batches of gossip that were lost or refused", ["reason"])
SUMMARIES = Counter("sheaf_gateway_gossip_summaries_total", "Summaries that were told because something was missed")
