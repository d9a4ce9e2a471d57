"""Programs that keep the repository consistent. `make docs`, `make check`, `make lock` and `make dist` run them.

generated           shared by the next four: rewrite generated files, or check them
settings_table      the table of settings
telemetry_tables    the tables of metrics, log events and spans in docs/telemetry.md
contract_files      the schemas in docs/contract
prometheus_rule     the alerts as a Kubernetes resource
deploy_check        checks the Dockerfile, the Kubernetes manifests and the alerts
workflow_check      checks the GitHub workflow
links               checks the relative links in Markdown
words               looks for words that this repository does not use
lock                resolves the dependencies into the two lock files
audit               asks whether a locked package has a known vulnerability
dist                builds the wheel, the sdist and the SBOM, and checks them
"""
