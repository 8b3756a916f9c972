"""Everything that gives verdicts: rules, rubrics, reward models and guard classifiers, behind one interface."""
