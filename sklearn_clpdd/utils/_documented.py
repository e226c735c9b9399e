"""The link to the documentation in scikit-learn's HTML of an estimator."""

DOCUMENTATION = "https://sklearn-clpdd.readthedocs.io/en/latest"


class DocumentedMixin:
    """Let the "?" of an estimator's HTML lead to its page; the names are those that scikit-learn reads."""

    _doc_link_module = "sklearn_clpdd"
    _doc_link_template = f"{DOCUMENTATION}/generated/{{page}}.html"

    def _doc_link_url_param_generator(self):
        kind = type(self)
        package = "sklearn_clpdd.baselines" if kind.__module__.split(".")[1] == "baselines" else "sklearn_clpdd"
        return {"page": f"{package}.{kind.__name__}"}
