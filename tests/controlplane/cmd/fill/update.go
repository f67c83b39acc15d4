package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// updated is the line that `fill update` prints for each line it read. Times
// are of the machine's wall clock, which every process of a benchmark shares.
type updated struct {
	Object          string `json:"object"`
	ResourceVersion string `json:"resource_version"`
	StartedUnixNs   int64  `json:"started_unix_ns"`
	DoneUnixNs      int64  `json:"done_unix_ns"`
	// When a watch of this process's own saw the write; with -watch only.
	SeenUnixNs int64 `json:"seen_unix_ns,omitempty"`
}

// write is one patch that a line asks for.
type write struct {
	object string
	patch  map[string]any
	send   func(ctx context.Context, patch []byte) (metav1.Object, error)
}

// update lives as long as its stdin, so that a benchmark pays for the process
// and its TLS connection once, and not within each write that it times.
func update(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("fill update", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig of a user who may patch Services and EndpointSlices")
	namespace := flags.String("namespace", "default", "namespace of the objects")
	watched := flags.String("watch", "", "a Service: tells for each write to it or to its slices when a watch saw it, which is when a proxy can know of it at the earliest")
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
	var sightings chan sighting
	if *watched != "" {
		if sightings, err = watchService(ctx, client, *namespace, *watched); err != nil {
			return fmt.Errorf("watch of Service %s/%s: %w", *namespace, *watched, err)
		}
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
		asked, err := parseWrite(client, *namespace, words)
		if err != nil {
			return fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		result, err := asked.run(ctx)
		if err != nil {
			return fmt.Errorf("%s of namespace %s: %w", asked.object, *namespace, err)
		}
		if sightings != nil {
			if result.SeenUnixNs, err = seen(sightings, result.ResourceVersion); err != nil {
				return fmt.Errorf("%s of namespace %s: %w", asked.object, *namespace, err)
			}
		}
		if err := encoder.Encode(result); err != nil {
			return err
		}
	}
	return lines.Err()
}

// parseWrite understands one line; the usage text lists what there is.
func parseWrite(client kubernetes.Interface, namespace string, words []string) (*write, error) {
	if len(words) != 3 {
		return nil, fmt.Errorf("want three words: endpoints|port|proxy-name|internal-policy NAME VALUE")
	}
	what, name, value := words[0], words[1], strings.TrimPrefix(words[2], "-")
	service := func(patch map[string]any) *write {
		return &write{"Service " + name, patch, func(ctx context.Context, patch []byte) (metav1.Object, error) {
			return client.CoreV1().Services(namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		}}
	}
	switch what {
	case "endpoints":
		addresses, err := parseAddresses(value)
		if err != nil {
			return nil, err
		}
		endpoints := []discoveryv1.Endpoint{}
		for _, address := range addresses {
			endpoints = append(endpoints, readyEndpoint(address))
		}
		// A merge patch replaces the list in one request: no read before the write.
		patch := map[string]any{"endpoints": endpoints}
		return &write{"EndpointSlice " + name, patch, func(ctx context.Context, patch []byte) (metav1.Object, error) {
			return client.DiscoveryV1().EndpointSlices(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		}}, nil
	case "port":
		number, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return nil, err
		}
		port := map[string]any{"name": "http", "protocol": "TCP", "port": number, "targetPort": targetPort}
		return service(map[string]any{"spec": map[string]any{"ports": []any{map[string]any{"$patch": "replace"}, port}}}), nil
	case "proxy-name":
		// A null removes the label.
		var label any
		if value != "" {
			label = value
		}
		labels := map[string]any{"service.kubernetes.io/service-proxy-name": label}
		return service(map[string]any{"metadata": map[string]any{"labels": labels}}), nil
	case "internal-policy":
		return service(map[string]any{"spec": map[string]any{"internalTrafficPolicy": value}}), nil
	}
	return nil, fmt.Errorf("%s: want endpoints, port, proxy-name or internal-policy", what)
}

func (w *write) run(ctx context.Context) (*updated, error) {
	patch, err := json.Marshal(w.patch)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	object, err := w.send(ctx, patch)
	if err != nil {
		return nil, err
	}
	return &updated{
		Object:          w.object,
		ResourceVersion: object.GetResourceVersion(),
		StartedUnixNs:   started.UnixNano(),
		DoneUnixNs:      time.Now().UnixNano(),
	}, nil
}

// sighting is one event of a watch.
type sighting struct {
	resourceVersion string
	at              time.Time
}

// watchService reports every event of a Service and of its slices.
func watchService(ctx context.Context, client kubernetes.Interface, namespace, name string) (chan sighting, error) {
	services, err := client.CoreV1().Services(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return nil, err
	}
	slices, err := client.DiscoveryV1().EndpointSlices(namespace).Watch(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
	if err != nil {
		return nil, err
	}
	sightings := make(chan sighting, 100)
	for _, events := range []watch.Interface{services, slices} {
		go func() {
			for event := range events.ResultChan() {
				at := time.Now()
				if object, ok := event.Object.(metav1.Object); ok {
					sightings <- sighting{object.GetResourceVersion(), at}
				}
			}
		}()
	}
	return sightings, nil
}

// seen waits for the sighting of a write, past those of earlier ones.
func seen(sightings chan sighting, resourceVersion string) (int64, error) {
	limit := time.After(10 * time.Second)
	for {
		select {
		case s := <-sightings:
			if s.resourceVersion == resourceVersion {
				return s.at.UnixNano(), nil
			}
		case <-limit:
			return 0, fmt.Errorf("no watch saw resource version %s", resourceVersion)
		}
	}
}
