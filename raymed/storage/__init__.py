"""Files by URI: whole or absent, sealed, held by one process at a time, and waited for while their storage is away."""
