package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// updated is the line that `fill update` prints for each line it read. Times
// are of the machine's wall clock, which every process of a benchmark shares.
type updated struct {
	Slice           string `json:"slice"`
	Endpoints       int    `json:"endpoints"`
	ResourceVersion string `json:"resource_version"`
	StartedUnixNs   int64  `json:"started_unix_ns"`
	DoneUnixNs      int64  `json:"done_unix_ns"`
}

// update lives as long as its stdin, so that a benchmark pays for the process
// and its TLS connection once, and not within each write that it times.
func update(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("fill update", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig of a user who may patch EndpointSlices")
	namespace := flags.String("namespace", "default", "namespace of the slices")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	ctx := context.Background()
	// Opens the connection before the first write.
	if _, err := client.DiscoveryV1().EndpointSlices(*namespace).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return fmt.Errorf("EndpointSlices of namespace %s: %w", *namespace, err)
	}
	encoder := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	// A slice may have 1,000 endpoints, which is more than Scanner's own limit of one line takes.
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			return fmt.Errorf("line %q: want SLICE ADDRESS[,ADDRESS...] or SLICE -", lines.Text())
		}
		result, err := updateSlice(ctx, client, *namespace, words[0], strings.TrimPrefix(words[1], "-"))
		if err != nil {
			return fmt.Errorf("EndpointSlice %s/%s: %w", *namespace, words[0], err)
		}
		if err := encoder.Encode(result); err != nil {
			return err
		}
	}
	return lines.Err()
}

func updateSlice(ctx context.Context, client kubernetes.Interface, namespace, name, list string) (*updated, error) {
	addresses, err := parseAddresses(list)
	if err != nil {
		return nil, err
	}
	endpoints := []discoveryv1.Endpoint{}
	for _, address := range addresses {
		endpoints = append(endpoints, readyEndpoint(address))
	}
	// A merge patch replaces the list in one request: no read before the write.
	patch, err := json.Marshal(map[string]any{"endpoints": endpoints})
	if err != nil {
		return nil, err
	}
	started := time.Now()
	slice, err := client.DiscoveryV1().EndpointSlices(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return nil, err
	}
	return &updated{
		Slice:           name,
		Endpoints:       len(slice.Endpoints),
		ResourceVersion: slice.ResourceVersion,
		StartedUnixNs:   started.UnixNano(),
		DoneUnixNs:      time.Now().UnixNano(),
	}, nil
}
