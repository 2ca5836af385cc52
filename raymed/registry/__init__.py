"""From a trial to a model that others can ask: assessed, registered with its card, served."""
