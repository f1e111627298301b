"""What gateways tell each other about their own requests, so that they decide nearly as one. Pure."""
