"""Teachers that know pictures: analytic, tiny trained and pretrained priors, each behind the protocol of `prior`."""
