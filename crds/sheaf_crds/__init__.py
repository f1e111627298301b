"""The API types of Sheaf and what is generated from them."""
