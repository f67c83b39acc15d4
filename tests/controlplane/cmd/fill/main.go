// Command fill puts many Services and EndpointSlices into an API server, and
// changes single ones with no process start in the way of a measurement. kubectl would need minutes for what this does in seconds.
//
//	fill create -kubeconfig F -services 10000 -endpoints 10
//	fill update -kubeconfig F < lines
//
// Both write one line of JSON per result to stdout, and words to stderr.
package main

import (
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const usage = `usage: fill create|update [flags]

  create  makes Services svc-00000, svc-00001, ... with their EndpointSlices;
          what exists already is left alone, so a second run can add more
  update  reads lines from stdin and carries each out by one write:
            endpoints SLICE ADDRESS[,ADDRESS...]   exactly these ready endpoints
            endpoints SLICE -                      no endpoint
            port SERVICE NUMBER                    one port, to the endpoints' port 8080
            proxy-name SERVICE NAME                the label by which another proxy serves it
            proxy-name SERVICE -                   without that label
            internal-policy SERVICE POLICY         Cluster or Local

'fill create -h' and 'fill update -h' list the flags.
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "create":
		err = create(os.Args[2:])
	case "update":
		err = update(os.Args[2:], os.Stdin, os.Stdout)
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "fill %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// connect makes a client without client-go's own rate limit, which speaks
// protobuf: the API server spends less on it than on JSON, so that what is
// measured beside it is measured on a quieter machine.
func connect(kubeconfig string) (*kubernetes.Clientset, error) {
	if kubeconfig == "" {
		return nil, fmt.Errorf("-kubeconfig is required")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf
	config.QPS = -1
	return kubernetes.NewForConfig(config)
}
