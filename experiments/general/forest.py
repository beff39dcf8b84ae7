"""One trial of forest.yml: a random forest on handwritten digits; its error and its number of
nodes.

All that ParetoTuner wants of a trial is a dict with the objectives.
"""

import nni
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

chosen = nni.get_next_parameter()
pictures, digits = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(pictures, digits, random_state=0)
forest = RandomForestClassifier(
    n_estimators=chosen["trees"],
    max_depth=chosen["depth"],
    max_features=chosen["features"],
    min_samples_leaf=int(chosen["leaf"]),
    criterion=chosen["criterion"],
    random_state=0,
).fit(train_x, train_y)
accuracy = float(forest.score(test_x, test_y))
nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
# `default` is what NNI's portal draws
nni.report_final_result({"default": accuracy, "error": 1 - accuracy, "nodes": nodes})
