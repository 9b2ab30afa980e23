"""Operations, a family a file; `base` says what is asked of each."""
