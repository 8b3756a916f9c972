"""The embedded little world: a town with three desks, its language, its people, and everything a life is raised on."""
