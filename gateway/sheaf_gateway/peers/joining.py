"""From the configuration to the company that a gateway keeps."""

from sheaf_gateway.config import ConfigError, GatewayConfig, PeersConfig, parse_listen
from sheaf_gateway.peers.company import Company, Core
from sheaf_gateway.peers.finding import Finder
from sheaf_gateway.peers.links import Replicas, Siblings
from sheaf_gateway.peers.seal import Keys
from sheaf_gateway.workers.place import Place


async def joined(config: GatewayConfig, core: Core, place: Place | None) -> Company | None:
    """The other workers and replicas; None where a gateway is alone by its configuration.

    Raises:
        ConfigError: The secret cannot be read, or the address cannot be listened on.
    """
    peers = config.peers
    if place is None and peers is None:
        return None
    company = Company(core, await _keys(config, place))
    siblings = Siblings(place.room, place.name, company.from_sibling) if place is not None else None
    replicas = None
    if peers is not None:
        try:
            replicas = _replicas(peers, company)
        except ConfigError:
            if siblings is not None:
                siblings.close()
            raise
    finder = Finder(peers, config.kubernetes, replicas.port) if peers is not None and replicas is not None else None
    company.begin(siblings=siblings, replicas=replicas, finder=finder)
    return company


def _replicas(peers: PeersConfig, company: Company) -> Replicas:
    try:
        return Replicas(*parse_listen(peers.listen), company.from_replica)
    except OSError as error:
        raise ConfigError(f"peers.listen: cannot listen on {peers.listen}: {error.strerror or error}") from None


async def _keys(config: GatewayConfig, place: Place | None) -> Keys:
    path = config.agent_token_file
    if path is None:
        if config.peers is not None or place is None:
            raise ConfigError("peers: replicas know each other by the agents' token; name its file in agentTokenFile")
        path = place.room / "gossip"
    keys = Keys(path)
    if not await keys.read():
        raise ConfigError(f"agentTokenFile {path}: cannot be read, or is empty")
    return keys
