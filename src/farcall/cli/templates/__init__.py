"""The programs that `farcall init` writes."""
