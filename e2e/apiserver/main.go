// Command kube-apiserver is the stock Kubernetes API server, pinned by go.mod and built for the tests that
// need a real one (scripts/apiserver).
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
