"""Operations: metrics of the running server."""
