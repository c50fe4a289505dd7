"""From Python and notebooks: a training as a function, and a session as an object."""
