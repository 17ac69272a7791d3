"""Fakes of engines that do not run here: each takes its engine's command line as the engine does, and serves like it."""
