package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
)

// Services of one etcd transaction. Each takes two writes, and etcd refuses a
// transaction with more than 128.
const batch = 50

// servicesByEtcd writes the Services, and the IPAddress that belongs to each
// ClusterIP, as the API server would store them.
//
// The API server counts all IPAddresses twice for each that it allocates, so
// that 10,000 Services take it minutes. Its watches read etcd: no client can tell
// the difference. Nobody else may make Services meanwhile, or two of them could
// get one address. The first Service does go through the API server: copies of
// what it stored have the defaults of whatever release it is.
func (p plan) servicesByEtcd(ctx context.Context, client kubernetes.Interface, url string) (int64, error) {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: 5 * time.Second})
	if err != nil {
		return 0, fmt.Errorf("etcd at %s: %w", url, err)
	}
	defer etcd.Close()

	var existed int64
	if was, err := p.createService(ctx, client, 0); err != nil {
		return 0, err
	} else if was {
		existed++
	}
	service, err := client.CoreV1().Services(p.namespace).Get(ctx, serviceName(0), metav1.GetOptions{})
	if err != nil {
		return 0, fmt.Errorf("Service %s/%s: %w", p.namespace, serviceName(0), err)
	}
	address, err := client.NetworkingV1().IPAddresses().Get(ctx, service.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil {
		return 0, fmt.Errorf("IPAddress %s: %w", service.Spec.ClusterIP, err)
	}
	free, err := freeAddresses(ctx, client)
	if err != nil {
		return 0, err
	}
	existing, err := client.CoreV1().Services(p.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("Services of namespace %s: %w", p.namespace, err)
	}
	exists := map[string]bool{}
	for i := range existing.Items {
		exists[existing.Items[i].Name] = true
	}

	var writes []clientv3.Op
	flush := func() error {
		if len(writes) == 0 {
			return nil
		}
		_, err := etcd.Txn(ctx).Then(writes...).Commit()
		writes = writes[:0]
		if err != nil {
			return fmt.Errorf("etcd at %s: %w", url, err)
		}
		return nil
	}
	for i := 1; i < p.services; i++ {
		if exists[serviceName(i)] {
			existed++
			continue
		}
		ip, err := free()
		if err != nil {
			return 0, err
		}
		more, err := storeService(service, address, serviceName(i), ip)
		if err != nil {
			return 0, err
		}
		writes = append(writes, more...)
		if len(writes) >= 2*batch {
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	return existed, flush()
}

// storeService copies a Service and its IPAddress under another name and address.
func storeService(service *corev1.Service, address *networkingv1.IPAddress, name string, ip netip.Addr) ([]clientv3.Op, error) {
	service = service.DeepCopy()
	// The serializer writes the kind that the object itself names.
	service.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	renew(&service.ObjectMeta, name)
	service.Spec.ClusterIP = ip.String()
	service.Spec.ClusterIPs = []string{ip.String()}

	address = address.DeepCopy()
	address.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"}
	renew(&address.ObjectMeta, ip.String())
	address.Spec.ParentRef.Name = name

	// With the API server's default --etcd-prefix.
	serviceKey := "/registry/services/specs/" + service.Namespace + "/" + name
	addressKey := "/registry/ipaddresses/" + ip.String()

	storage := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	var serviceBytes, addressBytes bytes.Buffer
	if err := storage.Encode(service, &serviceBytes); err != nil {
		return nil, fmt.Errorf("Service %s/%s: %w", service.Namespace, name, err)
	}
	if err := storage.Encode(address, &addressBytes); err != nil {
		return nil, fmt.Errorf("IPAddress %s: %w", ip, err)
	}
	// The address first, as the API server does it.
	return []clientv3.Op{
		clientv3.OpPut(addressKey, addressBytes.String()),
		clientv3.OpPut(serviceKey, serviceBytes.String()),
	}, nil
}

// renew makes a copied object's identity its own.
func renew(meta *metav1.ObjectMeta, name string) {
	meta.Name = name
	meta.UID = uuid.NewUUID()
	meta.CreationTimestamp = metav1.Now()
	// etcd's revision is the resource version: the API server stores none.
	meta.ResourceVersion = ""
}

// freeAddresses gives the IPv4 ClusterIPs that no Service has, one at each call.
func freeAddresses(ctx context.Context, client kubernetes.Interface) (func() (netip.Addr, error), error) {
	ranges, err := client.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("ServiceCIDR kubernetes: %w", err)
	}
	var prefix netip.Prefix
	for _, text := range ranges.Spec.CIDRs {
		candidate, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("ServiceCIDR kubernetes: %w", err)
		}
		if candidate.Addr().Is4() {
			prefix = candidate.Masked()
		}
	}
	if !prefix.IsValid() {
		return nil, fmt.Errorf("ServiceCIDR kubernetes has no IPv4 range: %v", ranges.Spec.CIDRs)
	}
	used := map[netip.Addr]bool{}
	taken, err := client.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("IPAddresses: %w", err)
	}
	for i := range taken.Items {
		if address, err := netip.ParseAddr(taken.Items[i].Name); err == nil {
			used[address] = true
		}
	}
	// The range's start is for Services that ask for an address of their own.
	next := prefix.Addr()
	for range min(256, 1<<(32-prefix.Bits())/16) {
		next = next.Next()
	}
	return func() (netip.Addr, error) {
		for {
			next = next.Next()
			// The last address of an IPv4 range is its broadcast address.
			if !prefix.Contains(next) || !prefix.Contains(next.Next()) {
				return netip.Addr{}, fmt.Errorf("the Services do not fit into %s: start the API server with a larger range", prefix)
			}
			if !used[next] {
				return next, nil
			}
		}
	}, nil
}
