// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// What can become of a write to a record.
var (
	// ErrTaken: there is a record of this address already.
	ErrTaken = errors.New("the address has a record already")
	// ErrChanged: it is not the version that the caller knows.
	ErrChanged = errors.New("the record is of another version")
	// ErrGone: there is no such record.
	ErrGone = errors.New("the address has no record")
)

// Records keeps records where every controller sees them. Its writes are
// atomic; each returns the record as written.
type Records interface {
	// Create returns ErrTaken when the address has a record.
	Create(ctx context.Context, r Record) (Record, error)
	// Update replaces pool, owners, sharing key and release of the version
	// r.Version of r.UID; ErrChanged or ErrGone when that is not the latest.
	Update(ctx context.Context, r Record) (Record, error)
	// Delete removes that version; ErrChanged or ErrGone likewise.
	Delete(ctx context.Context, r Record) error
	// Get reads past every cache; ErrGone when there is none.
	Get(ctx context.Context, a netip.Addr) (Record, error)
}

// API keeps records as LoadBalancerAddress objects.
type API struct {
	// Writer creates, patches and deletes.
	Writer client.Writer
	// Reader reads from the API server, not from a cache.
	Reader client.Reader
}

var _ Records = API{}

// Create implements Records.
func (s API) Create(ctx context.Context, r Record) (Record, error) {
	obj := &v1alpha1.LoadBalancerAddress{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LoadBalancerAddressName(r.Address)},
		Spec: v1alpha1.LoadBalancerAddressSpec{
			Address: r.Address.String(), Pool: r.Pool, Services: references(r.Owners), SharingKey: r.SharingKey,
		},
	}
	err := s.Writer.Create(ctx, obj)
	if apierrors.IsAlreadyExists(err) {
		return Record{}, ErrTaken
	}
	if err != nil {
		return Record{}, err
	}
	return FromAddress(obj)
}

// Update implements Records. It is a merge patch with the version as
// precondition, so that nothing has to be read before, and fields that are the
// administrator's are left alone.
func (s API) Update(ctx context.Context, r Record) (Record, error) {
	patch := map[string]any{
		"metadata": map[string]any{"uid": r.UID, "resourceVersion": r.Version},
		"spec": map[string]any{
			"pool": r.Pool, "services": references(r.Owners), "sharingKey": nonEmpty(r.SharingKey),
			"releasedAt": releasedAt(r), "releasedBy": serviceName(r.ReleasedBy),
		},
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return Record{}, fmt.Errorf("encode patch: %w", err)
	}
	obj := &v1alpha1.LoadBalancerAddress{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LoadBalancerAddressName(r.Address)}}
	if err := outcome(s.Writer.Patch(ctx, obj, client.RawPatch(types.MergePatchType, body))); err != nil {
		return Record{}, err
	}
	return FromAddress(obj)
}

// Delete implements Records.
func (s API) Delete(ctx context.Context, r Record) error {
	uid := types.UID(r.UID)
	obj := &v1alpha1.LoadBalancerAddress{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.LoadBalancerAddressName(r.Address)}}
	return outcome(s.Writer.Delete(ctx, obj, client.Preconditions{UID: &uid, ResourceVersion: &r.Version}))
}

// Get implements Records.
func (s API) Get(ctx context.Context, a netip.Addr) (Record, error) {
	obj := &v1alpha1.LoadBalancerAddress{}
	if err := outcome(s.Reader.Get(ctx, client.ObjectKey{Name: v1alpha1.LoadBalancerAddressName(a)}, obj)); err != nil {
		return Record{}, err
	}
	return FromAddress(obj)
}

// outcome turns the API server's answers into this package's.
func outcome(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return ErrGone
	case apierrors.IsConflict(err):
		return ErrChanged
	}
	return err
}

func references(owners []alloc.Owner) []v1alpha1.ServiceReference {
	out := make([]v1alpha1.ServiceReference, 0, len(owners))
	for _, o := range owners {
		out = append(out, v1alpha1.ServiceReference{Namespace: o.Namespace, Name: o.Name, UID: o.UID})
	}
	return out
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func releasedAt(r Record) *metav1.Time {
	if r.ReleasedAt.IsZero() {
		return nil
	}
	return &metav1.Time{Time: r.ReleasedAt}
}
