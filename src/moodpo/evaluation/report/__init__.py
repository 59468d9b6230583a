"""Report: draws what evaluation measured."""
