package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// Endpoints that no caller named come from this prefix, which no lab uses.
var invented = netip.MustParsePrefix("10.128.0.0/9")

// The API server refuses a slice with more endpoints.
const maxSlice = 1000

// The port of the endpoints where no caller names another.
const targetPort = 8080

// plan is what `fill create` was asked for.
type plan struct {
	namespace  string
	services   int
	endpoints  int
	sliceSize  int
	targetPort int
	real       []netip.Addr
}

// created is the line that `fill create` prints.
type created struct {
	Services  int     `json:"services"`
	Endpoints int     `json:"endpoints"`
	Existed   int64   `json:"existed"`
	Seconds   float64 `json:"seconds"`
}

func create(args []string) error {
	flags := flag.NewFlagSet("fill create", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig of a user who may create Services and EndpointSlices")
	namespace := flags.String("namespace", "default", "namespace to fill; created if missing")
	services := flags.Int("services", 1000, "number of Services")
	endpoints := flags.Int("endpoints", 10, "endpoints of each Service")
	sliceSize := flags.Int("slice-size", maxSlice, "endpoints of one EndpointSlice at most")
	backendPort := flags.Int("target-port", targetPort, "port of the endpoints")
	real := flags.String("endpoint-ip", "", "comma-separated addresses that every Service's first endpoints get, so that a connection can work; the others are invented from "+invented.String())
	etcd := flags.String("etcd", "", "URL of the API server's etcd: Services are then written there directly. Through the API server each one costs more the more there are, minutes for 10,000")
	workers := flags.Int("workers", 64, "requests in flight")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addresses, err := parseAddresses(*real)
	if err != nil {
		return fmt.Errorf("-endpoint-ip: %w", err)
	}
	p := plan{
		namespace:  *namespace,
		services:   *services,
		endpoints:  *endpoints,
		sliceSize:  *sliceSize,
		targetPort: *backendPort,
		real:       addresses,
	}
	if err := p.check(*workers); err != nil {
		return err
	}
	client, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	start := time.Now()
	existed, err := p.run(context.Background(), client, *etcd, *workers)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(created{
		Services:  p.services,
		Endpoints: p.services * p.endpoints,
		Existed:   existed,
		Seconds:   time.Since(start).Seconds(),
	})
}

func (p plan) check(workers int) error {
	room := 1 << (32 - invented.Bits())
	switch {
	case p.services < 0 || p.endpoints < 0 || workers < 1:
		return fmt.Errorf("-services and -endpoints must not be negative, -workers must be at least 1")
	case p.sliceSize < 1 || p.sliceSize > maxSlice:
		return fmt.Errorf("-slice-size must be 1 to %d", maxSlice)
	case len(p.real) > p.endpoints:
		return fmt.Errorf("-endpoint-ip has %d addresses, more than -endpoints %d", len(p.real), p.endpoints)
	case p.services*p.endpoints >= room:
		return fmt.Errorf("%d endpoints do not fit into %s", p.services*p.endpoints, invented)
	}
	return nil
}

// run makes everything and says how many of the Services were there before. The
// slices come first: the proxy under test then never meets a Service of ours
// without endpoints.
func (p plan) run(ctx context.Context, client kubernetes.Interface, etcd string, workers int) (int64, error) {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.namespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return 0, fmt.Errorf("namespace %s: %w", p.namespace, err)
	}
	err = p.each(ctx, "EndpointSlices", workers, func(i int) error {
		for _, slice := range p.slices(i) {
			_, err := client.DiscoveryV1().EndpointSlices(p.namespace).Create(ctx, slice, metav1.CreateOptions{})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("EndpointSlice %s/%s: %w", p.namespace, slice.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if etcd != "" && p.services > 0 {
		return p.servicesByEtcd(ctx, client, etcd)
	}
	var existed atomic.Int64
	err = p.each(ctx, "Services", workers, func(i int) error {
		was, err := p.createService(ctx, client, i)
		if was {
			existed.Add(1)
		}
		return err
	})
	return existed.Load(), err
}

// createService makes Service i, and says whether it was there before.
func (p plan) createService(ctx context.Context, client kubernetes.Interface, i int) (bool, error) {
	_, err := client.CoreV1().Services(p.namespace).Create(ctx, p.service(i), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("Service %s/%s: %w", p.namespace, serviceName(i), err)
	}
	return false, nil
}

// each calls do for the number of every Service, from several workers at once,
// until the first error; requests in flight finish.
func (p plan) each(ctx context.Context, what string, workers int, do func(i int) error) error {
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	start := time.Now()
	var done atomic.Int64
	work := make(chan int)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range work {
				if err := do(i); err != nil {
					fail(err)
					return
				}
				if n := done.Add(1); n%1000 == 0 {
					fmt.Fprintf(os.Stderr, "fill: %s: %d of %d after %.1f s\n", what, n, p.services, time.Since(start).Seconds())
				}
			}
		})
	}
feed:
	for i := range p.services {
		select {
		case work <- i:
		case <-running.Done():
			break feed
		}
	}
	close(work)
	group.Wait()
	return context.Cause(running)
}

func serviceName(i int) string {
	return fmt.Sprintf("svc-%05d", i)
}

func (p plan) service(i int) *corev1.Service {
	policy := corev1.IPFamilyPolicySingleStack
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: serviceName(i), Namespace: p.namespace},
		Spec: corev1.ServiceSpec{
			Type:           corev1.ServiceTypeClusterIP,
			IPFamilyPolicy: &policy,
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{
				Name:       "http",
				Protocol:   corev1.ProtocolTCP,
				Port:       80,
				TargetPort: intstr.FromInt32(int32(p.targetPort)),
			}},
		},
	}
}

// slices are the EndpointSlices of Service i, svc-00000-0, svc-00000-1, ...
func (p plan) slices(i int) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for first := 0; first < p.endpoints || first == 0; first += p.sliceSize {
		name, protocol, port := "http", corev1.ProtocolTCP, int32(p.targetPort)
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name:      fmt.Sprintf("%s-%d", serviceName(i), len(out)),
				Namespace: p.namespace,
				Labels: map[string]string{
					discoveryv1.LabelServiceName: serviceName(i),
					discoveryv1.LabelManagedBy:   "fill",
				},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
		}
		for e := first; e < min(first+p.sliceSize, p.endpoints); e++ {
			slice.Endpoints = append(slice.Endpoints, readyEndpoint(p.address(i, e)))
		}
		out = append(out, slice)
	}
	return out
}

func (p plan) address(service, endpoint int) netip.Addr {
	if endpoint < len(p.real) {
		return p.real[endpoint]
	}
	base := invented.Addr().As4()
	// +1: the prefix's own address is no host's.
	n := uint32(service*p.endpoints+endpoint) + 1
	base[1] |= byte(n >> 16)
	base[2] = byte(n >> 8)
	base[3] = byte(n)
	return netip.AddrFrom4(base)
}

func readyEndpoint(address netip.Addr) discoveryv1.Endpoint {
	yes, no := true, false
	return discoveryv1.Endpoint{
		Addresses:  []string{address.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
	}
}

func parseAddresses(list string) ([]netip.Addr, error) {
	var out []netip.Addr
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		address, err := netip.ParseAddr(part)
		if err != nil {
			return nil, err
		}
		if !address.Is4() {
			return nil, fmt.Errorf("%s is not an IPv4 address", address)
		}
		out = append(out, address)
	}
	return out, nil
}
