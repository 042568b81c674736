"""The command line: one short function per verb, its options made from the configuration classes."""
